"""The command line: `main` and one module for each verb. stdout carries the result, stderr everything else."""
