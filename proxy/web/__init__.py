"""What people and monitors see: it reads snapshots, and changes nothing but by calling the gateway."""
