"""Private Debian roots for tools, and guest images, from Debian packages; cached by content."""
