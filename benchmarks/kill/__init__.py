"""Is anything lost when a process is killed? SIGKILL at random moments, then the same command again.

    python -m benchmarks.kill --times 20 --out results

Small random models are trained (``training.sft``, ``training.rl``), a folder is searched with a cache (``searchr3
search``), and a checkpoint is saved over another one again and again (``save_pretrained``). Each runs once to its
end. Then it is started, killed at a random moment, and started again to its end. What must hold:

* Training ends with the very same weights, bit for bit.
* The search gives the same hits, and the cache holds no wrong vector, to 1e-5.
* Right after the kill, the checkpoint's folder is the old one or the new one, file for file; in the end it is the
  last.
* No unfinished file is left behind by the run that went through.

A fifth of the moments lies before the work begins (imports, loading), the others are spread over it. The result is
written after every kill: a stopped run goes on with the same command. The exit status is 1 when something is wrong,
2 for bad input. It needs Linux or macOS.
"""
