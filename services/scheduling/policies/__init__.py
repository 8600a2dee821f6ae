"""Where a request runs, and how it is split. `routing` is the contract, `registry` has the names."""
