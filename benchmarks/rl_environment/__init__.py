"""How true are the environment's rewards, and at what cost? A real policy takes real steps.

    python -m benchmarks.rl_environment --data DATA/eval/medquad-heldout --train-records DATA/train/medquad.jsonl.gz \\
        --model searchr3 --steps 100 --budgets 64 256 --out results

The policy is trained by policy gradient: it samples reasonings for training queries whose answers are in the corpus,
and AdamW raises the probability of those that bring the query nearer to its own answer than to those of the other
queries in the batch. That reward is computed without an environment, so that all environments, one for each refresh
policy and budget, see the very same steps. At every ``--full-every``-th step the whole corpus is encoded, once for all
of them, and their rewards are compared with the true ones: Pearson correlation, and how often the sign of the
group-relative advantage agrees. Rollouts that failed, whose reward is the same everywhere, are left out.

The test queries of the evaluation set are never used: training records that hold one, or nearly, are dropped. A killed
run goes on with the same command. Documents are encoded once per step and shared; the encoding time of an environment
is what its documents would have cost alone, by the tokens in them and the measured time of a token.
"""
