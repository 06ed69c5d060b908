"""Prove that the net is tight: break each rule of safety once, and see that something notices."""
