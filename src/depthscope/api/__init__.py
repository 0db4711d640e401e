"""The Python interface, one module per group of functions. `import depthscope as ds` gives their names."""
