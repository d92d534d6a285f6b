"""The verbs that let a trained model answer here: sample, chat, judge, attention."""
