"""The client side of the control socket: what `meshctl` is made of.

It starts in some 50 ms, because it imports neither trio nor cryptography nor netlink.
"""
