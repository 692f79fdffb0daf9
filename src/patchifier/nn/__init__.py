"""The network: the paper's section 4.1 (`model`), its quick twins, and what goes beyond the paper."""
