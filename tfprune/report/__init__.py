"""Results as tables, files and pictures. Only `pictures` imports matplotlib, and nothing else imports `pictures`."""
