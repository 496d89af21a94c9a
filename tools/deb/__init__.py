"""The Debian package of agent, controller and swingctl with their systemd units: `make deb`."""
