"""What `beeray.doctor` looks at, one file a thing: each check ends in a finding of one line."""
