"""What people say of a site: its file, its reservations, curtailments, pins and lockouts."""
