"""The engines that run .tflite files, in processes of their own."""
