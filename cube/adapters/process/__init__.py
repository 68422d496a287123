"""The process driver: plain processes with limits, that outlive the agent. See DESIGN.md."""
