"""The demo's graph, so that an installed wheel has it: a copy of examples/graphs/article.json."""

ARTICLE = r"""
{
  "input": {"topic": "honey bees"},
  "nodes": {
    "plan": {
      "agent": "writer",
      "prompt": "What are ${input.topic}? Answer in one short sentence."
    },
    "draft": {
      "agent": "writer",
      "prompt": "${plan}\n\nWhy do ${input.topic} matter? Answer in one short sentence.",
      "samples": 3,
      "voters": 2
    },
    "title": {
      "agent": "writer",
      "prompt": "${draft}\n\nWhat is a good title for this? Reply with one title of five words."
    },
    "summary": {
      "agent": "writer",
      "prompt": "${draft}\n\nRewrite this in one short, simple sentence."
    },
    "article": {
      "agent": "writer",
      "prompt": "Title: ${title}\n\n${plan} ${summary}\n\nRewrite this as one short, friendly paragraph."
    }
  },
  "output": "article"
}
"""
