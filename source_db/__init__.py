"""The example source: an e-commerce OLTP, its seed, and a simulation of its daily work."""
