"""Keys at work: the cluster's CA, TLS between nodes, the seal around gossip. See DESIGN.md."""
