"""Other people's quantizers, each a job that runs in the environment of its own toolchain.

They import nothing of ours but the errors, write a plain directory, and are checked afterwards like our own work.
"""
