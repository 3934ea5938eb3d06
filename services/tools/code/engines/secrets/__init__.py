"""Secret detection: keys of services by their shapes, private keys, connection strings, and texts under secret names."""
