"""Stage 7: records handed to consumers outside, each record once to each of them.

What is handed over is noted in a ledger of the study's own, which no consumer touches. Each batch goes through three
steps, and each step is one that either happens or does not:

1. its rows are put aside (`staged`);
2. its URIs are entered in the ledger: from here on the batch is owed to the consumer;
3. it is delivered: as a file, by the rename that takes it out of `staged`; to a queue, by one transaction that adds the
   rows and the batch's name.

A run begins by settling what the one before left: what is staged and in the ledger is delivered, what is staged and not
in the ledger goes and is made again. So whatever the consumer has meanwhile taken away is not delivered again.
"""
