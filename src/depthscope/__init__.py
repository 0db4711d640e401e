"""depthscope"""
