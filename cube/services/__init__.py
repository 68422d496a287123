"""asyncio loops: one machine, one owner task, bounded queues each. See DESIGN.md."""
