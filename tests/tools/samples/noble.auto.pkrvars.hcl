iso_url      = "https://cloud-images.ubuntu.com/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img"
iso_urls     = ["https://cloud-images.ubuntu.com/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img"]
iso_checksum = "file:https://cloud-images.ubuntu.com/releases/noble/release/SHA256SUMS"
