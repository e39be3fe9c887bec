"""Does GAN-based augmentation help when medical images are few? Neither TensorFlow nor torch is loaded here."""
__version__ = "0.1.0"
