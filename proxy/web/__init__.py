"""What people and monitors see. Reads snapshots, changes nothing but what the API is asked to."""
