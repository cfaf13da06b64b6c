"""What `toa-exp doctor` looks at; each check gives findings of one line."""
