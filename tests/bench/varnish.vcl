vcl 4.1;
backend origin { .host = "127.0.0.1"; .port = "@ORIGIN_PORT@"; .first_byte_timeout = 600s; .between_bytes_timeout = 600s; }
sub vcl_backend_response { set beresp.do_stream = true; set beresp.ttl = 1d; set beresp.do_gzip = false; }
