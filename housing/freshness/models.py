"""No models: the tables of this app have none, so that `dumpdata` and `flush` ignore them. Django sends `post_migrate` only to apps that have this module."""
