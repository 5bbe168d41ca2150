packer {
  required_plugins {
    qemu = {
      version = "~> 1"
      source  = "github.com/hashicorp/qemu"
    }
  }
}

variable "version" {
  type    = string
  default = "24.04"
}

variable "base_url" {
  type    = string
  default = "https://cloud-images.ubuntu.com/releases/noble/release"
}

variable "iso_urls" {
  type    = list(string)
  default = ["https://cloud-images.ubuntu.com/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img"]
}

# iso_url = "https://cloud-images.ubuntu.com/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img"
source "qemu" "release" {
  iso_url          = "https://cloud-images.ubuntu.com/releases/noble/release/ubuntu-${lookup({ v = var.version }, "v")}-server-cloudimg-amd64.img" // the newest
  iso_checksum     = "file:https://cloud-images.ubuntu.com/releases/noble/release/SHA256SUMS"
  disk_image       = true
  boot_command     = ["<esc> autoinstall ds=nocloud-net;s=https://cloud-images.ubuntu.com/seed/"]
  output_directory = "out" /* https://cloud-images.ubuntu.com/x */
  http_content = {
    "/user-data" = <<-END
      #cloud-config
      runcmd: [curl https://cloud-images.ubuntu.com/x]
    END
  }
}

source "qemu" "dated" {
  iso_urls = [
    "https://images.example.com/noble.img", # ours first
    "https://cloud-images.ubuntu.com/releases/noble/release-20260705/ubuntu-24.04-server-cloudimg-amd64.img",
    "${var.base_url}/ubuntu-24.04-server-cloudimg-amd64.img"
  ]
  iso_checksum = "sha256:ffe6203da54deeb6db5d2a98a83f9ec8e55f149d3f7ba622e1abe5fa966ee3d6"
}

source "qemu" "one-of-a-list" {
  iso_urls     = ["https://cloud-images.ubuntu.com/releases/noble/release-20260705/ubuntu-24.04-server-cloudimg-amd64.img"]
  iso_checksum = "ffe6203da54deeb6db5d2a98a83f9ec8e55f149d3f7ba622e1abe5fa966ee3d6"
}

source "qemu" "spaced" {
  iso_urls     = [ "https://cloud-images.ubuntu.com/releases/noble/release/a.img" ]
  iso_checksum = "none"
}

source "qemu" "given" {
  iso_urls     = var.iso_urls
  iso_checksum = var.version == "24.04" ? "file:https://cloud-images.ubuntu.com/releases/noble/release/SHA256SUMS" : "none"
}

build {
  sources = ["source.qemu.release", "source.qemu.dated"]

  provisioner "shell" {
    inline = [
      "curl -O https://cloud-images.ubuntu.com/x",
      "https://cloud-images.ubuntu.com/x"
    ]
  }
  post-processor "vagrant-cloud" {
    box_download_url = "https://cloud-images.ubuntu.com/x.box"
  }
}
