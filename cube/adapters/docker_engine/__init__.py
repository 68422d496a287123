"""The Docker Engine behind cube.ports.driver. See DESIGN.md."""
