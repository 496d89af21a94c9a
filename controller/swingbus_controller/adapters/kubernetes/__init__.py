"""The Kubernetes API as this controller uses it: raw answers, typed structs of our own fields, one list-watch per kind."""
