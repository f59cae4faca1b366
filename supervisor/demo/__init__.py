"""`./run demo`: one real build, from a directory to an image, with everything around it cleaned up.

It uses the programs as a user would: it starts `hypeman-supervisor`, and talks to it with
`hypeman-ctl`. So what it shows is what there is.
"""
