# OpenBao 2.6 or later as one node. HashiCorp Vault reads the same file, and warns of the two settings it does not know.

storage "raft" {
  path    = "/openbao/file"
  node_id = "store-1"
}

listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/openbao/tls/server.pem"
  tls_key_file  = "/openbao/tls/server.key"
}

api_addr     = "https://store:8200"
cluster_addr = "https://store:8201"

# A standby that answers reads itself serves stale secrets, and honours tokens that have been revoked.
disable_standby_reads = true

# When its disk is full nothing is answered any more: give it one of its own, and watch it.
audit "file" "main" {
  options {
    file_path = "/openbao/logs/audit.log"
  }
}

# For Vault, which would lock its memory. OpenBao does not; keep swap off, or encrypted, for both.
disable_mlock = true
ui            = false
