"""A blog into which the cache is taken home: what is not about caching. Its settings and cached views stand in README.md."""
