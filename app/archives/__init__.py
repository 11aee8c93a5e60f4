"""Which files are images and what their labels are: ZIPs, folders, label files."""
