"""What people and monitors see: it reads the state of the server, and changes it only by calling the gateway."""
