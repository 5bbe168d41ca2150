#!/bin/sh
curl -O https://cloud-images.ubuntu.com/café.img
	# https://cloud-images.ubuntu.com/
exec wget https://cloud-images.ubuntu.com/x.img