"""The project beside plain COPY, on the same data and servers, in one run."""
