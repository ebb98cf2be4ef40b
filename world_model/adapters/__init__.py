"""World models of other packages, as `WorldModel`."""
