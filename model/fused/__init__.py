"""What calls `model.kernels`: how tensors go in and come out. Whoever calls it says the same in torch."""
