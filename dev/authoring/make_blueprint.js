// Turns the open graph into one subgraph node, with what it is given and what a person sets as its inputs.
async ({ name, category, description, aliases, outside, settings, labels }) => {
  const { app } = window
  const graph = app.graph
  const inside = graph.nodes.filter((node) => !outside.includes(node.type))
  for (const inner of inside) inner.updateArea() // the subgraph's own ends stand left and right of them
  const { subgraph, node } = graph.convertToSubgraph(new Set(inside))
  subgraph.name = node.title = name
  await new Promise((resolve) => setTimeout(resolve, 100)) // dynamic inputs appear after the one that they depend on

  // The page offers some widgets of its own choice.
  const given = subgraph.inputs.filter((input) => {
    const link = subgraph.getLink(input.linkIds[0])
    const { input: slot } = link?.resolve(subgraph) ?? {}
    return slot && !slot.widget
  })
  for (const input of subgraph.inputs.filter((input) => !given.includes(input))) subgraph.removeInput(input)
  for (const input of given) if (labels[input.name]) subgraph.renameInput(input, labels[input.name])

  // More pictures, for the nodes whose sockets grow.
  for (const inner of subgraph.nodes) {
    for (const number of [1, 2]) {
      const slot = inner.inputs?.find((input) => input.name === `images.image${number}`)
      if (slot) subgraph.addInput(`image${number + 1}`, String(slot.type)).connect(slot, inner)
    }
  }

  for (const [id, name] of settings) {
    const inner = subgraph.getNodeById(id)
    if (!inner) continue
    const slot = inner.inputs.find((input) => input.widget?.name === name)
    if (!slot) throw new Error(`${inner.type} has no widget ${name}, only ${inner.inputs.map((input) => input.name)}`)
    const input = subgraph.addInput(name.split('.').at(-1), String(slot.type))
    if (!input.connect(slot, inner)) throw new Error(`${inner.type}.${name} cannot be set from outside`)
  }

  node.setSize([400, Math.max(node.computeSize()[1], 300)])
  node.pos = [0, 0]
  for (const other of graph.nodes.filter((other) => other !== node)) graph.remove(other)
  for (const group of [...graph.groups]) graph.remove(group)
  const root = graph.serialize()
  Object.assign(root.definitions.subgraphs[0], { category, description })
  const { nodes, definitions } = root
  const extra = { BlueprintSearchAliases: aliases }
  const blueprint = { revision: 0, last_node_id: node.id, last_link_id: 0, nodes, links: [], version: 0.4, definitions, extra }
  return JSON.stringify(blueprint, null, 2)
}
