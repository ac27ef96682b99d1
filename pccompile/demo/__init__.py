"""The demonstration: rules trained side by side, on the data sets and models built in or on the user's own.

Here is the flow of `pccompile demo` and `pccompile train`, a file for each step:

    command      options of both commands, and the run from beginning to end
    options      how to train, and what the options' names stand for
    data         the data set, and the batches that every rule sees alike
    models       the model, its initial weights the same for every rule
    training     a copy of the model under each rule, in lockstep, with measurements
    report       the table, results.json and the programs
    figure       the learning curves

`references` finds the user's own functions, and `errors` says what can go wrong. The table, the figure and
the built-in data sets need the `demo` extra: pip install "pccompile[demo]".
"""

from pccompile.demo.command import add_demo, add_train

__all__ = ["add_demo", "add_train"]
