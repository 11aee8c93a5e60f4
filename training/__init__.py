"""Training: fine-tune a ResNet18 on labelled images and write a bundle that the service loads."""
