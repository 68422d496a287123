/* Preloaded into an agent: its wall clock is wrong by what a file says, in milliseconds, as an int64 in
   the machine's byte order. The file is mapped, so a step is seen at once. Clocks that only go on (CLOCK_MONOTONIC and its
   kind) are as they were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *step_ms;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CUBE_TEST_CLOCK_STEP");
  real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0)
    return;
  void *page = mmap(NULL, sizeof *step_ms, PROT_READ, MAP_SHARED, fd, 0);
  if (page != MAP_FAILED)
    step_ms = page;
  close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_clock_gettime)
    begin();
  int code = real_clock_gettime(clock, now);
  if (code || !step_ms || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
    return code;
  int64_t ns = now->tv_nsec + (*step_ms % 1000) * 1000000;
  now->tv_sec += *step_ms / 1000;
  if (ns < 0)
    ns += 1000000000, now->tv_sec -= 1;
  if (ns >= 1000000000)
    ns -= 1000000000, now->tv_sec += 1;
  now->tv_nsec = ns;
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec precise;
  (void)zone;
  int code = clock_gettime(CLOCK_REALTIME, &precise);
  if (!code) {
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
  }
  return code;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out)
    *out = now.tv_sec;
  return now.tv_sec;
}
