"""One module for each way to move bytes. They never import each other; `registry` names them."""
