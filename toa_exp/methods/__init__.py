"""The methods: one file a method, one function a file, named alike.

A method is a generator. It yields a list of requests and is sent their scored replies in the same
order, until it has asked for exactly `budget` samples. It sees the names of the agents and `rng`,
its only source of chance, and imports the standard library, `toa_exp.core` and `toa_exp.tree`.
"""
