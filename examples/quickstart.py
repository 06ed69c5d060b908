"""Agent OS as a library: a cluster in this process, Python functions and a model as agents.

Run it with `python examples/quickstart.py`. In the `.venv` of `make demo` the model is a small real
one on this machine; with OPENAI_API_KEY set, name one of OpenAI's in place of it.
"""

from agentos import Cluster, OpenAIAgent, agent
from agentos.agents.local_model import LocalModelServer


@agent
def shout(prompt: str) -> str:
    """Any function is an agent."""
    return prompt.upper()


GRAPH = {
    "input": {"topic": "lighthouses"},
    "nodes": {
        "fact": {
            "agent": "writer",
            "prompt": "Tell one fact about ${input.topic}, in one sentence.",
        },
        "loud": {"agent": "shout", "prompt": "${fact}"},
    },
    "output": "loud",
}

if __name__ == "__main__":
    with LocalModelServer() as model:
        writer = OpenAIAgent(
            "writer", model="local", base_url=model.url, api_key_env="", max_tokens=60
        )
        with Cluster([writer, shout], proxies=2) as cluster, cluster.client() as client:
            print(client.submit(GRAPH).result(timeout_s=120))
