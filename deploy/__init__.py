"""What runs Tectum somewhere: systemd units, a broker's configuration, and the demo."""
