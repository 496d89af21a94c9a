"""Container images of Swingbus and of its toys, built without a daemon and without a registry: `make images`."""
