"""Methods that replace a convolution by a product of smaller ones."""
