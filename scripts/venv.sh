# Sourced by the other scripts: afterwards $ROOT is the checkout, $BIN its virtual environment's
# programs, with Cube and (install EXTRA) its extras installed from pyproject.toml.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${CUBE_VENV:-$ROOT/.venv}
BIN=$VENV/bin

lack() {
  printf 'error: %s\n  try: %s\n' "$1" "$2" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  lack "Python 3.11 or newer is needed" "sudo apt-get install -y python3 python3-venv"
}

# install [EXTRA]: what pyproject.toml asks for is there. Does nothing when it was so already.
install() {
  local extra=${1:-} want=$ROOT target stamp
  if [ ! -x "$BIN/python" ] || ! "$BIN/python" -c '' 2>/dev/null; then
    local python
    python=$(find_python)
    echo "Making a virtual environment in $VENV …" >&2
    "$python" -m venv "$VENV" >/dev/null 2>&1 || {
      rm -rf "$VENV"
      lack "python3 cannot make virtual environments" "sudo apt-get install -y python3-venv"
    }
  fi
  stamp=$VENV/.installed-${extra:-base}
  target=$(sha256sum <"$ROOT/pyproject.toml")
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$target" ]; then
    return
  fi
  [ -z "$extra" ] || want="$ROOT[$extra]"
  echo "Installing Cube and what it needs …" >&2
  "$BIN/python" -m pip install -qq --disable-pip-version-check --editable "$want" ||
    lack "the packages could not be installed" "look at pip's message above; is the network there?"
  printf '%s\n' "$target" >"$stamp"
}
