"""The cluster state machine: (state, entry) → (state', outcome, events). Pure, total,
deterministic. See DESIGN.md."""
